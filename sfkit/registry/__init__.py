"""What plugins register, and how components are declared and found."""
