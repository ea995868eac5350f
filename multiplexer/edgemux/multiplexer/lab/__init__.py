"""The lab: every known router on anyone's pair of models, fitted on one split, judged on another. Offline."""
