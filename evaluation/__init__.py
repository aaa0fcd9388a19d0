"""How far a prediction is from the truth: metrics, the evaluator inside training, reports."""
