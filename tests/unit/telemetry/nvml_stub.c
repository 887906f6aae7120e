/* An ABI stub of libnvidia-ml.so.1: two GPUs, the second one partitioned (MIG) with one slice.
   It shows that unmodified pynvml can be read, not that a GPU can. A device handle points to its
   number; NVML_STUB=down fails nvmlInit, NVML_STUB=lost makes GPU 0 stop answering. */
#include <stdlib.h>
#include <string.h>
typedef struct { unsigned long long total, free, used; } memory_t;
typedef struct { unsigned gpu, memory; } rates_t;
enum { OK = 0, NOT_SUPPORTED = 3, NOT_FOUND = 6, NOT_LOADED = 9, LOST = 15 };
static int numbers[3] = {0, 1, 2}; /* 2 is the slice of GPU 1 */
static unsigned long long energy_mj = 5000000;
static int is(const char *mode) { char *s = getenv("NVML_STUB"); return s && !strcmp(s, mode); }
static int lost(int *d) { return *d == 0 && is("lost"); }
static int say(char *to, unsigned size, const char *text) { strncpy(to, text, size); return OK; }
int nvmlInitWithFlags(unsigned f) { return is("down") ? NOT_LOADED : OK; }
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) { return OK; }
const char *nvmlErrorString(int r) { return r == NOT_LOADED ? "Driver Not Loaded" : "stub error"; }
int nvmlSystemGetDriverVersion(char *v, unsigned n) { return say(v, n, "580.65.06"); }
int nvmlSystemGetCudaDriverVersion_v2(int *v) { *v = 13010; return OK; }
int nvmlDeviceGetCount_v2(unsigned *n) { *n = 2; return OK; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, int **d) { *d = &numbers[i]; return OK; }
int nvmlDeviceGetMigMode(int *d, unsigned *now, unsigned *later) {
  if (*d == 0) return NOT_SUPPORTED;
  *now = *later = 1; return OK;
}
int nvmlDeviceGetMaxMigDeviceCount(int *d, unsigned *n) { *n = 2; return OK; }
int nvmlDeviceGetMigDeviceHandleByIndex(int *d, unsigned i, int **slice) {
  if (i) return NOT_FOUND;
  *slice = &numbers[2]; return OK;
}
int nvmlDeviceGetUUID(int *d, char *u, unsigned n) {
  if (lost(d)) return LOST;
  return say(u, n, *d == 0 ? "GPU-aaaa" : *d == 1 ? "GPU-bbbb" : "MIG-cccc");
}
int nvmlDeviceGetName(int *d, char *s, unsigned n) {
  return say(s, n, *d == 2 ? "Stub H100 MIG 1g.10gb" : "Stub H100");
}
int nvmlDeviceGetMemoryInfo(int *d, memory_t *m) {
  if (lost(d)) return LOST;
  m->total = *d == 2 ? 10ull << 30 : 80ull << 30; m->used = 1ull << 30;
  m->free = m->total - m->used; return OK;
}
int nvmlDeviceGetUtilizationRates(int *d, rates_t *r) {
  if (*d) return NOT_SUPPORTED;
  r->gpu = 65; r->memory = 30; return OK;
}
int nvmlDeviceGetPowerUsage(int *d, unsigned *mw) { *mw = 312500; return OK; }
int nvmlDeviceGetTotalEnergyConsumption(int *d, unsigned long long *mj) {
  *mj = energy_mj; energy_mj += 1500; return OK;
}
int nvmlDeviceGetTemperature(int *d, int sensor, unsigned *c) { *c = 41; return OK; }
