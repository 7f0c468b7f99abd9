"""The demo: a simulated site, a writer, a sender and a receiver in processes of their own, and what befalls them."""
