"""Starting workers: the zygote, its protocol, and handles of processes. The only room that knows multiprocess."""
