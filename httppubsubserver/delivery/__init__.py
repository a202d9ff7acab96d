"""Getting messages to subscribers: what is sent when (`dispatcher`), and how one POST is made (`outbound`)."""
