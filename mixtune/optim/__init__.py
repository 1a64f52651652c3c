"""How a step moves the weights: recipe, optimiser, learning rate, loss, mixup, averages, a teacher."""
