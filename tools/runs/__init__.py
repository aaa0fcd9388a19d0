"""What is behind tools/plot_metrics.py: trainings read from their folders, put into groups, drawn and tabulated."""
