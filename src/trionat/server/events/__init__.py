"""What happens at a server, and who is told of it: readers in this process, and webhooks by way of a journal; and the trail of what people have changed."""
