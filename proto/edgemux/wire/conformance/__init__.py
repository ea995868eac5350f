"""What a server of the Open Inference Protocol should answer, asked of a running one; Triton is the measure.

python -m edgemux.wire.conformance HOST:PORT [--http HOST:PORT] [--admin HOST:PORT] [--model NAME] [--json]
"""
