/* Where tensors are, and whether they are what they were: a part of `native.c`.
 *
 * A tensor of Python has one of torch inside, at a place that `native_tensors.py` finds. What that is, torch's own C
 * interface tells, whose functions are passed in.
 */
typedef int32_t (*Ask)(const void *tensor, void *answer); /* 0 where there is one */

typedef struct {
    Ask layout, device, type, dim, sizes, strides, address; /* NULL: nothing can be found */
    const void *kinds[2];                                   /* classes of tensors that keep their numbers themselves */
    int64_t class_place, place;                             /* of the class, and of torch's tensor, in one of Python */
} Torch;

static Torch torch;

/* Takes the functions of torch; NULL: there are none. */
EXPORT void shrinkage_use_torch(const Torch *given) { torch = given ? *given : (Torch){0}; }

/* Whether tensors can be found. */
EXPORT int shrinkage_searches(void) { return torch.address != NULL; }

static int is_as_it_was(const Shape *shape, const char *object) {
    const char *tensor = object + torch.place;
    const void *kind = *(const void *const *)(object + torch.class_place);
    const int64_t *sizes, *strides;
    int32_t device, layout, type;
    int64_t dim;
    if (kind != torch.kinds[0] && kind != torch.kinds[1]) return 0;
    if (torch.device(tensor, &device) || device || torch.layout(tensor, &layout) || layout) return 0; /* CPU, strided */
    if (torch.type(tensor, &type) || type != shape->type || torch.dim(tensor, &dim) || dim != shape->dim) return 0;
    if (torch.sizes(tensor, &sizes) || torch.strides(tensor, &strides)) return 0;
    for (int64_t i = 0; i < dim; i++) {
        if (sizes[i] != shape->sizes[i]) return 0;
        if (sizes[i] != 1 && strides[i] != shape->sizes[dim + i]) return 0;
    }
    return 1;
}

/* Finds all tensors, and returns 1; 0 if one is not what was looked for, or nothing can be found. */
EXPORT int shrinkage_find(const Search *search) {
    for (int64_t i = 0; i < search->count; i++) {
        if (!torch.address || !is_as_it_was(search->shapes + i, search->tensors[i])) return 0;
        if (torch.address((const char *)search->tensors[i] + torch.place, search->found + i)) return 0;
    }
    return 1;
}
