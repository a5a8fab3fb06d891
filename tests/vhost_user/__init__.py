"""vhost-user, from the wire to the ring."""
