"""Starting workers: the zygote and handles of processes. The only room that knows multiprocess."""
