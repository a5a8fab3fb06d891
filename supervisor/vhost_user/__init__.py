"""vhost-user: devices of real virtual machines, served by workers that may die."""
