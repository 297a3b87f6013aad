"""What is learnt: a method a file, each to be read beside its paper."""
