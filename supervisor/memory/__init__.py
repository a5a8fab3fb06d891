"""Guest memory and what two processes need to share any memory at all."""
