from .toy import best_of_n_probability as best_of_n_probability
