"""Learning: how a step moves the weights: optimiser, rates, loss, mixing, smoothing, averages, a teacher."""
