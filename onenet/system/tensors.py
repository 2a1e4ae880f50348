"""Files of tensors: what torch raises for one that is damaged, or holds anything but plain data."""

import pickle
import zipfile

DAMAGE = (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError, zipfile.BadZipFile)
