/* The fast lane: reads events that repeat, without the interpreter's help.
 *
 * Most reads of a stream carry one HTTP chunk with one event that differs from the last one in a
 * few letters (loadgen/plain.py). For those this does what loadgen/wire.py does, and in the same order:
 * read, take the kernel's stamp, compare, keep the gap and the text. Whatever is anything else is
 * handed back as it was read, and decoded in Python. What was kept is fetched with settle().
 *
 * The point is not instructions but memory: between two events of a stream the processor has
 * followed hundreds of others, and every object of the interpreter that an event needs has to be
 * fetched again. Here it is one structure.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#ifndef SO_TIMESTAMPNS
#define SO_TIMESTAMPNS 35
#endif

enum {
    READ_BYTES = 65536,
    PEEK_BYTES = 1024,
    MAX_EVENTS = 256,     /* connections looked at before the loop has its turn */
    FRAMES_AT_ONCE = 8,   /* of one of them, before the others have theirs */
    MAX_SIZE_DIGITS = 8,  /* of a chunk */
    MAX_TAKEN = 8192,     /* events kept of a connection until they are fetched */
    MAX_TEXT_BYTES = 65536,
    MAX_DESCRIPTORS = 1 << 20, /* what Linux lets a process have, unless told otherwise */
};

/* What the connections of a process share: loadgen/backlog.py, Backlog.state. */
enum { READ_AT, CATCHING_UP_UNTIL, AWAY_S, CATCH_UP_S, STATE_LENGTH };

/* What is kept of one connection's events since it was last asked. */
typedef struct {
    int is_open;
    Py_ssize_t taken, coalesced, gaps_room, text_bytes, text_room;
    int first_coalesced; /* the first one taken shared the stamp of the read before */
    double at, output_at, drained_at;
    struct timespec stamp; /* of the last read */
    float *gaps;
    char *text;
    char *frame; /* the event's bytes before its text, and those after it */
    Py_ssize_t head_bytes, tail_bytes;
} Lane;

typedef struct {
    PyObject_HEAD
    int epoll_fd;
    Lane **lanes; /* by file descriptor; NULL where none was ever opened */
    int room;
    double *state;
    Py_buffer state_view;
} FastLane;

typedef struct {
    char data[CMSG_SPACE(sizeof(struct timespec))];
    struct cmsghdr *head; /* NULL: nothing came with the read */
} Ancillary;

typedef struct {
    const char *text; /* as JSON has it */
    Py_ssize_t text_bytes, frame_bytes; /* its text; all of its chunk */
} Event;

static char read_buffer[READ_BYTES]; /* one for all: nothing runs between a read and its use */
static char peek_buffer[PEEK_BYTES];
static char meant[256];   /* what an ASCII character stands for inside a JSON string; 0: nothing */
static char escaped[256]; /* what it stands for after a backslash */

static double seconds(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

static int64_t nanoseconds(const struct timespec *at)
{
    return (int64_t)at->tv_sec * 1000000000 + at->tv_nsec;
}

static void late(double *state, double now, double by_s)
{
    state[CATCHING_UP_UNTIL] = now + (by_s < state[CATCH_UP_S] ? by_s : state[CATCH_UP_S]);
}

/* Backlog.likely */
static int backlog_is_likely(double *state, double now)
{
    double away_s = now - state[READ_AT];
    state[READ_AT] = now;
    if (away_s > state[AWAY_S])
        late(state, now, away_s);
    return now < state[CATCHING_UP_UNTIL];
}

static ssize_t receive(int fd, size_t bytes, Ancillary *ancillary)
{
    struct iovec buffer = {read_buffer, bytes};
    struct msghdr message = {
        .msg_iov = &buffer,
        .msg_iovlen = 1,
        .msg_control = ancillary->data,
        .msg_controllen = sizeof ancillary->data,
    };
    ssize_t size = recvmsg(fd, &message, MSG_DONTWAIT);
    ancillary->head = size < 0 ? NULL : CMSG_FIRSTHDR(&message);
    return size;
}

/* The kernel's stamp; false where there is none. */
static int stamp_of(const Ancillary *ancillary, struct timespec *stamp)
{
    struct cmsghdr *head = ancillary->head;
    if (head == NULL || head->cmsg_level != SOL_SOCKET || head->cmsg_type != SO_TIMESTAMPNS ||
        head->cmsg_len < CMSG_LEN(sizeof *stamp))
        return 0;
    memcpy(stamp, CMSG_DATA(head), sizeof *stamp);
    return 1;
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/* The payload of the chunk that the bytes begin with; NULL where no whole one is there. */
static const char *chunk_payload(const char *data, Py_ssize_t size, Py_ssize_t *payload_bytes)
{
    Py_ssize_t at = 0;
    int64_t declared = 0;
    int digit;
    while (at < size && at < MAX_SIZE_DIGITS && (digit = hex_digit(data[at])) >= 0) {
        declared = declared * 16 + digit;
        at++;
    }
    if (at == 0 || size - at < declared + 4)
        return NULL;
    const char *payload = data + at + 2;
    if (data[at] != '\r' || data[at + 1] != '\n' || payload[declared] != '\r' ||
        payload[declared + 1] != '\n')
        return NULL;
    *payload_bytes = declared;
    return payload;
}

/* Bytes of the character beyond ASCII that the bytes begin with (RFC 3629, 4); 0: there is none. */
static Py_ssize_t wide_character(const unsigned char *c, Py_ssize_t left)
{
    Py_ssize_t size = c[0] < 0xe0 ? 2 : c[0] < 0xf0 ? 3 : 4;
    if (c[0] < 0xc2 || c[0] > 0xf4 || left < size)
        return 0;
    for (Py_ssize_t i = 1; i < size; i++)
        if ((c[i] & 0xc0) != 0x80)
            return 0;
    int is_overlong = (c[0] == 0xe0 && c[1] < 0xa0) || (c[0] == 0xf0 && c[1] < 0x90);
    int is_none = (c[0] == 0xed && c[1] > 0x9f) || (c[0] == 0xf4 && c[1] > 0x8f);
    return is_overlong || is_none ? 0 : size;
}

/* Whether this is the inside of a JSON string without escapes of six characters. */
static int is_json_text(const unsigned char *text, Py_ssize_t size)
{
    Py_ssize_t at = 0, step;
    while (at < size) {
        if (meant[text[at]])
            step = 1;
        else if (text[at] == '\\')
            step = at + 1 < size && escaped[text[at + 1]] ? 2 : 0;
        else
            step = wide_character(text + at, size - at);
        if (step == 0)
            return 0;
        at += step;
    }
    return 1;
}

/* Write what the inside of a JSON string stands for; how many bytes that are. */
static Py_ssize_t unescape(char *to, const char *text, Py_ssize_t size)
{
    char *start = to;
    for (Py_ssize_t at = 0; at < size; at++)
        *to++ = text[at] == '\\' ? escaped[(unsigned char)text[++at]] : text[at];
    return to - start;
}

/* Whether the bytes begin with a chunk that is the event that repeats, and nothing else. */
static int is_plain(const Lane *lane, const char *data, Py_ssize_t size, Event *event)
{
    Py_ssize_t payload_bytes;
    const char *payload = chunk_payload(data, size, &payload_bytes);
    if (payload == NULL)
        return 0;
    Py_ssize_t text_bytes = payload_bytes - lane->head_bytes - lane->tail_bytes;
    if (text_bytes <= 0)
        return 0;
    const char *text = payload + lane->head_bytes;
    if (memcmp(payload, lane->frame, lane->head_bytes) != 0 ||
        memcmp(text + text_bytes, lane->frame + lane->head_bytes, lane->tail_bytes) != 0 ||
        !is_json_text((const unsigned char *)text, text_bytes))
        return 0;
    *event = (Event){text, text_bytes, payload + payload_bytes + 2 - data};
    return 1;
}

/* Room for one more gap and so much text; false at a limit, or where memory is not to be had. */
static int make_room(Lane *lane, Py_ssize_t text_bytes)
{
    if (lane->taken == lane->gaps_room) {
        Py_ssize_t room = lane->gaps_room ? lane->gaps_room * 2 : 64;
        float *gaps = room <= MAX_TAKEN ? PyMem_Realloc(lane->gaps, room * sizeof *gaps) : NULL;
        if (gaps == NULL)
            return 0;
        lane->gaps = gaps;
        lane->gaps_room = room;
    }
    if (lane->text_bytes + text_bytes > lane->text_room) {
        Py_ssize_t room = lane->text_room ? lane->text_room : 256;
        while (room < lane->text_bytes + text_bytes)
            room *= 2;
        char *text = room <= MAX_TEXT_BYTES ? PyMem_Realloc(lane->text, room) : NULL;
        if (text == NULL)
            return 0;
        lane->text = text;
        lane->text_room = room;
    }
    return 1;
}

/* Keep an event that was just read, if its stamp can be true; is_all: the socket was emptied. */
static int take(Lane *lane, double *state, const Ancillary *ancillary, const Event *event,
                int is_all)
{
    struct timespec wall, stamp;
    clock_gettime(CLOCK_REALTIME, &wall);
    double now = seconds(CLOCK_MONOTONIC);
    if (!stamp_of(ancillary, &stamp))
        return 0;
    double age_s = (double)(nanoseconds(&wall) - nanoseconds(&stamp)) * 1e-9;
    if (!(age_s >= 0.0 && age_s <= now - lane->drained_at) || !make_room(lane, event->text_bytes))
        return 0;
    if (age_s > state[AWAY_S])
        late(state, now, age_s);
    if (is_all)
        lane->drained_at = now;
    if (!is_all && nanoseconds(&stamp) == nanoseconds(&lane->stamp)) {
        lane->coalesced++; /* of one segment with the one before, as far as is known */
        lane->first_coalesced |= lane->taken == 0;
    } else if (now - age_s > lane->at) {
        lane->at = now - age_s;
    }
    lane->stamp = stamp;
    lane->gaps[lane->taken++] = (float)(lane->at - lane->output_at);
    lane->output_at = lane->at;
    lane->text_bytes += unescape(lane->text + lane->text_bytes, event->text, event->text_bytes);
    return 1;
}

/* What recvmsg gives, and what it was asked for. */
static PyObject *as_read(const Ancillary *ancillary, ssize_t size, Py_ssize_t asked)
{
    struct cmsghdr *head = ancillary->head;
    if (head == NULL)
        return Py_BuildValue("(y#[]n)", read_buffer, (Py_ssize_t)size, asked);
    return Py_BuildValue("(y#[(iiy#)]n)", read_buffer, (Py_ssize_t)size, head->cmsg_level,
                         head->cmsg_type, (const char *)CMSG_DATA(head),
                         (Py_ssize_t)(head->cmsg_len - CMSG_LEN(0)), asked);
}

static PyObject *as_error(void)
{
    PyObject *type, *value, *trace;
    PyErr_SetFromErrno(PyExc_OSError);
    PyErr_Fetch(&type, &value, &trace);
    PyErr_NormalizeException(&type, &value, &trace);
    Py_XDECREF(type);
    Py_XDECREF(trace);
    return value;
}

static PyObject *nothing_or_error(void)
{
    return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR ? NULL : as_error();
}

/* Several events may wait: look before each read, and read one by one, each with its own stamp. */
static PyObject *read_with_care(Lane *lane, double *state, int fd)
{
    Ancillary ancillary;
    Event event;
    for (int i = 0; i < FRAMES_AT_ONCE; i++) {
        ssize_t seen = recv(fd, peek_buffer, PEEK_BYTES, MSG_PEEK | MSG_DONTWAIT);
        if (seen < 0)
            return nothing_or_error();
        if (!is_plain(lane, peek_buffer, seen, &event))
            return Py_NewRef(Py_False);
        ssize_t size = receive(fd, event.frame_bytes, &ancillary);
        if (size < 0)
            return nothing_or_error();
        if (size != event.frame_bytes || !take(lane, state, &ancillary, &event, 0))
            return as_read(&ancillary, size, event.frame_bytes);
        if (seen == event.frame_bytes)
            break;
    }
    return NULL;
}

/* One look at a connection; what is left to do in Python, or NULL: nothing. */
static PyObject *read_lane(Lane *lane, double *state, int fd)
{
    Ancillary ancillary;
    Event event;
    if (backlog_is_likely(state, seconds(CLOCK_MONOTONIC)))
        return read_with_care(lane, state, fd);
    ssize_t size = receive(fd, READ_BYTES, &ancillary);
    if (size < 0)
        return nothing_or_error();
    if (size < READ_BYTES && is_plain(lane, read_buffer, size, &event) &&
        event.frame_bytes == size && take(lane, state, &ancillary, &event, 1))
        return NULL;
    return as_read(&ancillary, size, READ_BYTES);
}

static Lane *open_lane(const FastLane *self, int fd)
{
    Lane *lane = fd >= 0 && fd < self->room ? self->lanes[fd] : NULL;
    return lane != NULL && lane->is_open ? lane : NULL;
}

PyDoc_STRVAR(drain_doc,
"drain() -> list[tuple[int, object]]\n\n"
"Read once from each connection that has something. Events that repeat are kept; for each other\n"
"connection its descriptor and what is to be done: None, read it (it is not in the lane); False,\n"
"read it with care (several events may be waiting); what was read: data, ancillary data and the\n"
"size asked for; or an OSError.");

static PyObject *FastLane_drain(FastLane *self, PyObject *Py_UNUSED(ignored))
{
    struct epoll_event events[MAX_EVENTS];
    int ready = epoll_wait(self->epoll_fd, events, MAX_EVENTS, 0);
    PyObject *todo = PyList_New(0);
    for (int i = 0; i < ready && todo != NULL; i++) {
        int fd = events[i].data.fd;
        Lane *lane = open_lane(self, fd);
        PyObject *read = lane ? read_lane(lane, self->state, fd) : Py_NewRef(Py_None);
        if (read == NULL) {
            if (PyErr_Occurred())
                Py_CLEAR(todo);
            continue;
        }
        PyObject *item = Py_BuildValue("(iN)", fd, read);
        if (item == NULL || PyList_Append(todo, item) < 0)
            Py_CLEAR(todo);
        Py_XDECREF(item);
    }
    return todo;
}

/* A descriptor; -1 with an exception set where it is none. */
static int as_descriptor(PyObject *number)
{
    long fd = PyLong_AsLong(number);
    if (!PyErr_Occurred() && (fd < 0 || fd >= MAX_DESCRIPTORS))
        PyErr_Format(PyExc_ValueError, "%ld is no descriptor", fd);
    return PyErr_Occurred() ? -1 : (int)fd;
}

static PyObject *control(const FastLane *self, int operation, PyObject *descriptor)
{
    struct epoll_event event = {.events = EPOLLIN};
    event.data.fd = as_descriptor(descriptor);
    if (event.data.fd < 0)
        return NULL;
    if (epoll_ctl(self->epoll_fd, operation, event.data.fd, &event) < 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(add_doc, "add(fd)\n\nTell when there is something to read from a descriptor.");

static PyObject *FastLane_add(FastLane *self, PyObject *fd)
{
    return control(self, EPOLL_CTL_ADD, fd);
}

static void free_lane(Lane *lane)
{
    if (lane == NULL)
        return;
    PyMem_Free(lane->gaps);
    PyMem_Free(lane->text);
    PyMem_Free(lane->frame);
    PyMem_Free(lane);
}

PyDoc_STRVAR(remove_doc, "remove(fd)\n\nTell no more, and forget what is kept.");

static PyObject *FastLane_remove(FastLane *self, PyObject *descriptor)
{
    PyObject *done = control(self, EPOLL_CTL_DEL, descriptor);
    int fd = done ? as_descriptor(descriptor) : self->room;
    if (fd < self->room) {
        free_lane(self->lanes[fd]);
        self->lanes[fd] = NULL;
    }
    return done;
}

/* The lane of a descriptor, made if there is none yet; NULL: no memory. */
static Lane *lane_of(FastLane *self, int fd)
{
    if (fd >= self->room) {
        int room = fd + 64;
        Lane **lanes = PyMem_Realloc(self->lanes, room * sizeof *lanes);
        if (lanes == NULL)
            return NULL;
        memset(lanes + self->room, 0, (room - self->room) * sizeof *lanes);
        self->lanes = lanes;
        self->room = room;
    }
    if (self->lanes[fd] == NULL)
        self->lanes[fd] = PyMem_Calloc(1, sizeof(Lane));
    return self->lanes[fd];
}

static int take_frame(Lane *lane, const Py_buffer *head, const Py_buffer *tail)
{
    char *frame = PyMem_Realloc(lane->frame, head->len + tail->len + 1);
    if (frame == NULL)
        return 0;
    memcpy(frame, head->buf, head->len);
    memcpy(frame + head->len, tail->buf, tail->len);
    lane->frame = frame;
    lane->head_bytes = head->len;
    lane->tail_bytes = tail->len;
    return 1;
}

static void forget(Lane *lane)
{
    lane->taken = lane->coalesced = lane->text_bytes = 0;
    lane->first_coalesced = 0;
}

PyDoc_STRVAR(enter_doc,
"enter(fd, head, tail, stamp, at, output_at, drained_at)\n\n"
"Open a descriptor's lane. The event that repeats is head, a text, tail; stamp is the kernel's of\n"
"the last read, a struct timespec; at its arrival, output_at that of the last output, drained_at\n"
"when the socket was last found empty, all CLOCK_MONOTONIC seconds.");

static PyObject *FastLane_enter(FastLane *self, PyObject *args)
{
    Py_buffer head, tail, stamp;
    int fd;
    double at, output_at, drained_at;
    if (!PyArg_ParseTuple(args, "iy*y*y*ddd", &fd, &head, &tail, &stamp, &at, &output_at,
                          &drained_at))
        return NULL;
    int is_stamped = stamp.len >= (Py_ssize_t)sizeof(struct timespec);
    int is_sound = is_stamped && fd >= 0 && fd < MAX_DESCRIPTORS;
    Lane *lane = is_sound ? lane_of(self, fd) : NULL;
    int is_open = lane != NULL && take_frame(lane, &head, &tail);
    if (is_open)
        memcpy(&lane->stamp, stamp.buf, sizeof lane->stamp);
    PyBuffer_Release(&head);
    PyBuffer_Release(&tail);
    PyBuffer_Release(&stamp);
    if (!is_open)
        return is_sound ? PyErr_NoMemory()
                        : PyErr_Format(PyExc_ValueError, "%d is no descriptor, or no timespec", fd);
    lane->is_open = 1;
    forget(lane);
    lane->at = at;
    lane->output_at = output_at;
    lane->drained_at = drained_at;
    Py_RETURN_NONE;
}

static PyObject *kept_in(Lane *lane)
{
    const char *gaps = lane->taken ? (const char *)lane->gaps : "";
    const char *text = lane->taken ? lane->text : "";
    PyObject *kept = Py_BuildValue(
        "(nniy#s#y#dd)", lane->taken, lane->coalesced, lane->first_coalesced, gaps,
        (Py_ssize_t)(lane->taken * sizeof *lane->gaps), text, lane->text_bytes,
        (const char *)&lane->stamp, (Py_ssize_t)sizeof lane->stamp, lane->at, lane->drained_at);
    if (kept != NULL)
        forget(lane);
    return kept;
}

PyDoc_STRVAR(settle_doc,
"settle(fd) -> tuple[int, int, int, bytes, str, bytes, float, float] | None\n\n"
"What was kept since the last call: events; how many of them shared the stamp of the one before,\n"
"and whether the first did; the gap before each (native floats, seconds); their text; the stamp of\n"
"the last read and its arrival; when the socket was last found empty. None: not in the lane.");

static PyObject *FastLane_settle(FastLane *self, PyObject *descriptor)
{
    Lane *lane = open_lane(self, as_descriptor(descriptor));
    if (PyErr_Occurred())
        return NULL;
    return lane ? kept_in(lane) : Py_NewRef(Py_None);
}

PyDoc_STRVAR(leave_doc, "leave(fd)\n\nClose a descriptor's lane; what was not settled is lost.");

static PyObject *FastLane_leave(FastLane *self, PyObject *descriptor)
{
    Lane *lane = open_lane(self, as_descriptor(descriptor));
    if (PyErr_Occurred())
        return NULL;
    if (lane != NULL)
        lane->is_open = 0;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(fileno_doc, "fileno() -> int\n\nReadable while any descriptor is.");

static PyObject *FastLane_fileno(FastLane *self, PyObject *Py_UNUSED(ignored))
{
    return PyLong_FromLong(self->epoll_fd);
}

static void release(FastLane *self)
{
    if (self->epoll_fd >= 0)
        close(self->epoll_fd);
    self->epoll_fd = -1;
    for (int fd = 0; fd < self->room; fd++)
        free_lane(self->lanes[fd]);
    PyMem_Free(self->lanes);
    self->lanes = NULL;
    self->room = 0;
}

PyDoc_STRVAR(close_doc, "close()\n\nForget all descriptors; they stay open.");

static PyObject *FastLane_close(FastLane *self, PyObject *Py_UNUSED(ignored))
{
    release(self);
    Py_RETURN_NONE;
}

static void FastLane_dealloc(FastLane *self)
{
    release(self);
    if (self->state_view.obj != NULL)
        PyBuffer_Release(&self->state_view);
    Py_TYPE(self)->tp_free(self);
}

static PyObject *FastLane_new(PyTypeObject *type, PyObject *args, PyObject *Py_UNUSED(named))
{
    PyObject *state;
    if (!PyArg_ParseTuple(args, "O", &state))
        return NULL;
    FastLane *self = (FastLane *)type->tp_alloc(type, 0); /* zeroed */
    if (self == NULL)
        return NULL;
    self->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (self->epoll_fd < 0) {
        PyErr_SetFromErrno(PyExc_OSError);
    } else if (PyObject_GetBuffer(state, &self->state_view, PyBUF_WRITABLE) == 0) {
        self->state = self->state_view.buf;
        if (self->state_view.len == STATE_LENGTH * (Py_ssize_t)sizeof(double))
            return (PyObject *)self;
        PyErr_SetString(PyExc_ValueError, "the state of a backlog is four doubles");
    }
    Py_DECREF(self);
    return NULL;
}

static PyMethodDef fastlane_methods[] = {
    {"add", (PyCFunction)FastLane_add, METH_O, add_doc},
    {"remove", (PyCFunction)FastLane_remove, METH_O, remove_doc},
    {"enter", (PyCFunction)FastLane_enter, METH_VARARGS, enter_doc},
    {"leave", (PyCFunction)FastLane_leave, METH_O, leave_doc},
    {"settle", (PyCFunction)FastLane_settle, METH_O, settle_doc},
    {"drain", (PyCFunction)FastLane_drain, METH_NOARGS, drain_doc},
    {"fileno", (PyCFunction)FastLane_fileno, METH_NOARGS, fileno_doc},
    {"close", (PyCFunction)FastLane_close, METH_NOARGS, close_doc},
    {NULL, NULL, 0, NULL},
};

static PyTypeObject FastLaneType = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "loadgen._fastlane.FastLane",
    .tp_basicsize = sizeof(FastLane),
    .tp_dealloc = (destructor)FastLane_dealloc,
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = PyDoc_STR("FastLane(state)\n\nThe connections of a process; see fastlane.py."),
    .tp_methods = fastlane_methods,
    .tp_new = FastLane_new,
};

static struct PyModuleDef fastlane_module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "loadgen._fastlane",
    .m_doc = "Reads events that repeat; see loadgen/fastlane.py.",
    .m_size = -1,
};

PyMODINIT_FUNC PyInit__fastlane(void)
{
    for (int c = ' '; c < 0x80; c++)
        meant[c] = c == '"' || c == '\\' ? 0 : c;
    for (const char *pair = "\"\"\\\\//b\bf\fn\nr\rt\t"; *pair; pair += 2)
        escaped[(unsigned char)pair[0]] = pair[1];
    if (PyType_Ready(&FastLaneType) < 0)
        return NULL;
    PyObject *module = PyModule_Create(&fastlane_module);
    if (module != NULL && PyModule_AddObjectRef(module, "FastLane", (PyObject *)&FastLaneType) < 0)
        Py_CLEAR(module);
    return module;
}
