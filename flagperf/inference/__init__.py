"""Inference: engines that answer queries, the loads they are put under, and the protocol of one trial."""
