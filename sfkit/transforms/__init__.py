"""Target transforms: what is done to the teacher's features before the student is compared with them."""
