"""Export of a trained network to graphs for other runtimes, with a runner that needs numpy and onnxruntime only."""
