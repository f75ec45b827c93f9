/* What a test needs of libnvidia-ml.so.1: two cards, of which the second refuses some calls.
 * Declared after NVIDIA's published interface; return codes: 0 fine, 3 not supported, 999 unknown.
 * nvmlDeviceGetCurrentClocksEventReasons is missing, as in drivers before 535. */
#include <stdint.h>
#include <string.h>

typedef struct { unsigned int index; } card_t;
typedef struct { unsigned long long total, free, used; } memory_t;
typedef struct { unsigned int gpu, memory; } utilization_t;

static card_t cards[] = {{0}, {1}};
static int power_asked, limit_asked;

int nvmlInitWithFlags(unsigned int flags) { return 0; }
int nvmlInit_v2(void) { return 0; }
const char *nvmlErrorString(int code) { return "refused"; }

int nvmlDeviceGetCount_v2(unsigned int *count) { *count = 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned int index, card_t **card) { *card = &cards[index]; return 0; }

int nvmlDeviceGetUUID(card_t *card, char *text, unsigned int length) {
    strcpy(text, card->index ? "GPU-b" : "GPU-a");
    return 0;
}
int nvmlDeviceGetName(card_t *card, char *text, unsigned int length) {
    if (card->index) return 999;
    strcpy(text, "Stand-in 9000");
    return 0;
}
int nvmlSystemGetDriverVersion(char *text, unsigned int length) { strcpy(text, "550.1"); return 0; }

int nvmlDeviceGetUtilizationRates(card_t *card, utilization_t *rates) {
    if (card->index) return 3; /* as with MIG */
    rates->gpu = 75;
    rates->memory = 0; /* an observed zero is a reading */
    return 0;
}
int nvmlDeviceGetMemoryInfo(card_t *card, memory_t *memory) {
    memory->total = 80ULL << 30;
    memory->used = 60ULL << 30;
    memory->free = 20ULL << 30;
    return 0;
}
int nvmlDeviceGetPowerUsage(card_t *card, unsigned int *milliwatts) {
    *milliwatts = 312500;
    return card->index && !power_asked++ ? 999 : 0; /* fails once, then works */
}
int nvmlDeviceGetEnforcedPowerLimit(card_t *card, unsigned int *milliwatts) {
    *milliwatts = 700000;
    return card->index && !limit_asked++ ? 3 : 0; /* says it cannot: must not be asked again */
}
int nvmlDeviceGetTotalEnergyConsumption(card_t *card, unsigned long long *millijoules) {
    *millijoules = 1234500;
    return 0;
}
int nvmlDeviceGetTemperature(card_t *card, unsigned int sensor, unsigned int *celsius) {
    *celsius = 41;
    return 0;
}
int nvmlDeviceGetClockInfo(card_t *card, unsigned int kind, unsigned int *megahertz) {
    *megahertz = kind == 1 ? 1980 : kind == 2 ? 2619 : 0;
    return 0;
}
