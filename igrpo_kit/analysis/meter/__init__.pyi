# All public names of this package. Type checkers read this list; each module is imported on first use.
from .prediction import Prediction as Prediction
from .prediction import predict as predict
from .reading import Reading as Reading
from .reading import take_reading as take_reading
from .reading import waiting_time as waiting_time
