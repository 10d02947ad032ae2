"""What the steps of several methods are made of: augmentation, mixing, crops, night images, labels of a round."""
