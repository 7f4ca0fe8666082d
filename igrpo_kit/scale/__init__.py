"""From one GPU to several nodes: iGRPO on the engines the field uses."""
