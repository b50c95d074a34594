"""What weights mean; nothing of stages. The only place that imports torch."""
