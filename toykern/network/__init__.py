"""What a network is, told once: its activations, its tensors, its options."""
