"""Training as such: configs, schedule, step, checkpoints and processes. Nothing here knows what is trained."""

import warnings

# detectron2 and fvcore decorate functions by it when they are imported, and nobody who trains can do anything about it.
warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)
