"""What the policies take."""
