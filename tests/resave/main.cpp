// resave FROM TO: loads a checkpoint as it is stored and saves it again, for tools/check_roundtrip.py.
#include <cstdio>
#include <exception>

#include "checkpoint/checkpoint.h"
#include "cpu/cpu_ops.h"

int main(int argc, char** argv) {
    if (argc != 3) {
        std::fputs("usage: resave FROM TO\n", stderr);
        return 2;
    }
    try {
        fathom::ThreadPool threads;
        fathom::CpuOps ops(threads);
        const fathom::LoadedModel loaded = fathom::load_model(argv[1], ops, {.dtype = {}, .with_mtp = true});
        fathom::save_model(argv[2], *loaded.model, ops, {.with_copies = loaded.has_copies});
    } catch (const std::exception& error) {
        std::fprintf(stderr, "resave: %s\n", error.what());
        return 1;
    }
    return 0;
}
