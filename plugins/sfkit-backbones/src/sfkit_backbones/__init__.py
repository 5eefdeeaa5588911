"""What networks of teachers are made of, and how their published weights are found, read and placed."""
