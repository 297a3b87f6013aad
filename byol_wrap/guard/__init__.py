"""What may come in, and what training looks like: every check and every warning."""
