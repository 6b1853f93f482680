"""execution: admits runs, drives them to their end, and keeps everything that is durable about them."""
