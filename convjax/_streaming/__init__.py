"""What a piece of a signal sees beside itself: the inputs before it, and none of the sequences packed with it."""
