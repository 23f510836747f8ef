/* kernel_sets: prints the kernel sets that this machine can run beside the default one, a name a
   line; tests/run.sh repeats C tests with each of them. */
#include "dictlearn.h"

#include <stdio.h>
#include <string.h>

int main(void) {
    dlrn_context *ctx = NULL;
    if (dlrn_context_create(NULL, &ctx) != DLRN_OK) return 1;
    dlrn_context_info info = dlrn_context_describe(ctx);
    for (int i = 0; info.available[i]; i++)
        if (strcmp(info.available[i], info.kernels) != 0) puts(info.available[i]);
    dlrn_context_destroy(ctx);
    return 0;
}
