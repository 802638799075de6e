"""What a memory is made of: atoms, candidates, anchors, mixtures, states."""
