"""What several methods share: heads, queues, EMA, Sinkhorn, losses, collectives."""
