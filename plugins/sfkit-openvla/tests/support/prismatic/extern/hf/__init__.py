"""The policies, with the call structure that Hugging Face's classes have."""
