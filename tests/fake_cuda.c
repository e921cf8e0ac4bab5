// A CUDA runtime and driver with one device that computes nothing: as much of both as torch calls for fake tensors.
// FAKE_SM is the compute capability without the dot, such as 90.
#include <driver_types.h>
#include <stdlib.h>
#include <string.h>

#define SUCCEED(name, arguments) int name arguments { return 0; }
#define ANSWER(name, arguments, output, value) int name arguments { *output = value; return 0; }

SUCCEED(cuInit, (unsigned flags))
ANSWER(cuDriverGetVersion, (int *version), version, CUDA_VERSION)
ANSWER(cuDevicePrimaryCtxGetState, (int device, unsigned *flags, int *active), active, 0)
ANSWER(cudaGetDeviceCount, (int *count), count, 1)
ANSWER(cudaGetDevice, (int *device), device, 0)
SUCCEED(cudaSetDevice, (int device))
SUCCEED(cudaDeviceSynchronize, (void))
ANSWER(cudaStreamIsCapturing, (void *stream, int *status), status, 0)

int cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
    *least = 0;
    *greatest = -5;
    return 0;
}

int cudaGetDeviceProperties(struct cudaDeviceProp *properties, int device) {
    int capability = atoi(getenv("FAKE_SM"));
    memset(properties, 0, sizeof *properties);
    strcpy(properties->name, "fake GPU");
    properties->major = capability / 10;
    properties->minor = capability % 10;
    properties->totalGlobalMem = 80ull << 30;
    properties->multiProcessorCount = 132;
    properties->warpSize = 32;
    properties->maxThreadsPerBlock = 1024;
    properties->maxThreadsPerMultiProcessor = 2048;
    properties->sharedMemPerBlock = 48 << 10;
    properties->sharedMemPerBlockOptin = 227 << 10;
    return 0;
}
