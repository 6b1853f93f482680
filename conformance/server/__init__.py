"""The suite for gateways: scenarios over a gateway's address and two users' tokens. It needs nothing else of them."""
