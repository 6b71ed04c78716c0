"""gradlab: how does the gradient travel through time in a recurrent network?"""
