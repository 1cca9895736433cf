def write_vigor(out, arguments, jobs):
    raise NotImplementedError
