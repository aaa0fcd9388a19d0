"""Compare predictions with the ground truth: metrics, the evaluator inside training, reports."""
