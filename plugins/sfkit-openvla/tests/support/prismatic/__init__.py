"""A small stand-in of OpenVLA-OFT's package and of the classes of OpenVLA, for tests without a checkout of either."""
