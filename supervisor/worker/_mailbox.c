/* The hot path of a journal, compiled: see mailbox.py, which says what each method promises and does the same
 * in Python where this is missing.
 *
 * Positions in the file are layout.py's, the order of the stores and who is believed journal.py's. What is in the memory
 * may be anything: each word is read once, positions are masked, and what does not look as it should is left
 * to the Python half, which says what is wrong. Stores that make others visible are releases, the loads that
 * look for them acquires (C11 7.17.3), so that the order also holds where the machine is not x86.
 *
 * The stable ABI of CPython 3.11 and nothing else: one build serves every later version.
 */
#define _GNU_SOURCE /* sched_getcpu */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>
#include <structmember.h>

#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { REVISION = 2 }; /* of what the two halves agree on, as in mailbox.py */
enum { /* words of the header, as in layout.py */
    SUBMITTED = 8, CONSUMED = 9,
    COMMIT = 16, PUBLISHED, OUTPUT_END, WORKER_SLEEPS, HEARTBEAT, IRQ_LEVELS, NEXT_ALARM, HANDLING, RUNS_ON
};
enum { HEADER_BYTES = 4096, INPUT_WORDS = 4, SLOTS_SHIFT = 32, KIND_SHIFT = 48, SIZE_SHIFT = 56 };
enum { READ = 1, VALUE = 1, REPLY = 2, WANTED = 10 };
enum { OUTPUT_BYTES = 16, SLOT_BYTES = 56, VALUE_BYTES = 8, INPUT_FIELDS = 7, OUTPUT_FIELDS = 4 };

typedef struct {
    PyObject_HEAD
    Py_buffer view;
    uint64_t *words, *registers, *inputs;
    uint8_t *outputs, *slots;
    uint64_t register_words, input_mask, output_bytes, state_bytes;
    PyObject *record;             /* the class of what take() returns */
    unsigned long long output_end; /* of the last commit */
    long long fuse;               /* stores until this process is killed, for tests; 0: never */
} Mailbox;

static uint64_t load(const uint64_t *word) { return __atomic_load_n(word, __ATOMIC_ACQUIRE); }

static void store(Mailbox *self, uint64_t *word, uint64_t value)
{
    if (self->fuse && --self->fuse == 0)
        kill(getpid(), SIGKILL);
    __atomic_store_n(word, value, __ATOMIC_RELEASE);
}

static void put(Mailbox *self, void *to, const void *from, size_t length)
{
    if (self->fuse && --self->fuse == 0) {
        memcpy(to, from, length / 2); /* it may be cut off anywhere */
        kill(getpid(), SIGKILL);
    }
    memcpy(to, from, length);
}

static void fence(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

static void relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

enum { LOOKS = 64, PAUSES_MOST = 16 };

/* Looks at a word until it is `at_least`, for about `spin_ns`; the pauses between two looks grow, so that a
 * sibling thread of the same core is left its execution units. */
static int spin(const uint64_t *word, uint64_t at_least, uint64_t spin_ns)
{
    uint64_t begun_ns = 0;
    if (!spin_ns)
        return load(word) >= at_least;
    for (int pauses = 1;;) {
        for (int look = 0; look < LOOKS; look += pauses) {
            if (load(word) >= at_least)
                return 1;
            for (int pause = 0; pause < pauses; pause++)
                relax();
        }
        if (pauses < PAUSES_MOST)
            pauses *= 2;
        uint64_t now = now_ns();
        if (!begun_ns)
            begun_ns = now;
        else if (now - begun_ns >= spin_ns)
            return load(word) >= at_least;
    }
}

/* Of whatever is an integer, as memoryview takes it (PEP 357). */
static int to_u64(PyObject *object, uint64_t *value)
{
    if (PyLong_Check(object)) {
        *value = PyLong_AsUnsignedLongLong(object);
    } else {
        PyObject *number = PyNumber_Index(object);
        if (!number)
            return 0;
        *value = PyLong_AsUnsignedLongLong(number);
        Py_DECREF(number);
    }
    if (*value != (uint64_t)-1 || !PyErr_Occurred())
        return 1;
    if (PyErr_ExceptionMatches(PyExc_OverflowError))
        PyErr_SetString(PyExc_ValueError, "not a 64-bit word");
    return 0;
}

static int take_arguments(PyObject *const *arguments, Py_ssize_t given, Py_ssize_t wanted, uint64_t *values)
{
    if (given != wanted) {
        PyErr_Format(PyExc_TypeError, "%zd arguments instead of %zd", given, wanted);
        return 0;
    }
    for (Py_ssize_t index = 0; index < given; index++)
        if (!to_u64(arguments[index], &values[index]))
            return 0;
    return 1;
}

static int is_released(Mailbox *self)
{
    if (self->words)
        return 0;
    PyErr_SetString(PyExc_ValueError, "the mailbox has been released");
    return 1;
}

/* -- the supervisor's side ------------------------------------------------------------------------------- */

/* number, kind, stamp_ns, offset, size, value */
static int submit_record(Mailbox *self, const uint64_t *record)
{
    if (record[1] > 0x7F || record[3] > UINT32_MAX || record[4] > 8) {
        PyErr_SetString(PyExc_ValueError, "out of range");
        return -1;
    }
    uint64_t *input = self->inputs + (record[0] & self->input_mask) * INPUT_WORDS;
    input[0] = record[2];
    input[1] = record[3] | (uint64_t)1 << SLOTS_SHIFT | record[1] << KIND_SHIFT | record[4] << SIZE_SHIFT;
    input[2] = record[5];
    input[3] = 0;
    __atomic_store_n(&self->words[SUBMITTED], record[0] + 1, __ATOMIC_RELEASE);
    fence();
    return load(&self->words[WORKER_SLEEPS]) != 0;
}

static PyObject *mailbox_submit(Mailbox *self, PyObject *const *arguments, Py_ssize_t given)
{
    uint64_t record[6];
    if (!take_arguments(arguments, given, 6, record) || is_released(self))
        return NULL;
    int sleeps = submit_record(self, record);
    return sleeps < 0 ? NULL : PyBool_FromLong(sleeps);
}

static PyObject *mailbox_take_value(Mailbox *self, PyObject *const *arguments, Py_ssize_t given)
{
    uint64_t wanted[3]; /* number, spin_ns, doorbell_fd */
    if (!take_arguments(arguments, given, 3, wanted) || is_released(self))
        return NULL;
    uint64_t *words = self->words;
    if (!spin(&words[PUBLISHED], wanted[0] + 1, wanted[1]))
        Py_RETURN_NONE;
    uint64_t position = load(&words[CONSUMED]), end = load(&words[OUTPUT_END]);
    if (end - position != OUTPUT_BYTES + 16 || position & 15)
        Py_RETURN_NONE;
    const uint8_t *output = self->outputs + (position & (self->output_bytes - 1));
    const uint8_t *payload = self->outputs + ((position + OUTPUT_BYTES) & (self->output_bytes - 1));
    uint32_t length;
    uint16_t kind;
    uint64_t number, value;
    memcpy(&length, output, 4);
    memcpy(&kind, output + 4, 2);
    memcpy(&number, output + 8, 8);
    memcpy(&value, payload, 8);
    if (length != VALUE_BYTES || kind != VALUE || number != wanted[0])
        Py_RETURN_NONE;
    __atomic_store_n(&words[CONSUMED], end, __ATOMIC_RELEASE);
    fence();
    if (load(&words[WORKER_SLEEPS])) { /* it may wait for room; if the bell is full, it rings */
        const uint64_t once = 1;
        ssize_t rung = send((int)wanted[2], &once, sizeof once, MSG_DONTWAIT | MSG_NOSIGNAL);
        (void)rung;
    }
    return PyLong_FromUnsignedLongLong(value);
}

static PyObject *mailbox_await_published(Mailbox *self, PyObject *const *arguments, Py_ssize_t given)
{
    uint64_t wanted[2]; /* number, spin_ns */
    if (!take_arguments(arguments, given, 2, wanted) || is_released(self))
        return NULL;
    return PyBool_FromLong(spin(&self->words[PUBLISHED], wanted[0], wanted[1]));
}

static PyObject *mailbox_shares_core(Mailbox *self, PyObject *unused)
{
    if (is_released(self))
        return NULL;
    uint64_t core = load(&self->words[RUNS_ON]);
    return PyBool_FromLong(core && core == (uint64_t)(sched_getcpu() + 1));
}

/* -- the worker's side ----------------------------------------------------------------------------------- */

static PyObject *mailbox_await_submitted(Mailbox *self, PyObject *const *arguments, Py_ssize_t given)
{
    uint64_t wanted[2]; /* number, spin_ns */
    if (!take_arguments(arguments, given, 2, wanted) || is_released(self))
        return NULL;
    return PyBool_FromLong(spin(&self->words[SUBMITTED], wanted[0], wanted[1]));
}

static PyObject *mailbox_take(Mailbox *self, PyObject *const *arguments, Py_ssize_t given)
{
    uint64_t number;
    if (!take_arguments(arguments, given, 1, &number) || is_released(self))
        return NULL;
    const uint64_t *input = self->inputs + (number & self->input_mask) * INPUT_WORDS;
    __atomic_thread_fence(__ATOMIC_ACQUIRE); /* the caller has seen by a plain load that it is there */
    uint64_t head = load(&input[1]);
    self->words[HEARTBEAT]++;
    self->words[RUNS_ON] = (uint64_t)(sched_getcpu() + 1);
    store(self, &self->words[HANDLING], number + 1);
    if (load(&input[3]) || (head >> SLOTS_SHIFT & 0xFFFF) != 1)
        Py_RETURN_NONE;
    PyObject *fields = PyTuple_New(INPUT_FIELDS);
    if (!fields)
        return NULL;
    PyObject *values[INPUT_FIELDS] = {
        PyLong_FromUnsignedLongLong(number),
        PyLong_FromUnsignedLongLong(head >> KIND_SHIFT & 0x7F),
        PyLong_FromUnsignedLongLong(load(&input[0])),
        PyLong_FromUnsignedLongLong(head & UINT32_MAX),
        PyLong_FromUnsignedLongLong(head >> SIZE_SHIFT),
        PyLong_FromUnsignedLongLong(load(&input[2])),
        PyBytes_FromStringAndSize(NULL, 0),
    };
    int failed = 0;
    for (int index = 0; index < INPUT_FIELDS; index++) {
        failed |= !values[index];
        PyTuple_SetItem(fields, index, values[index]);
    }
    PyObject *record = NULL;
    if (!failed) {
        newfunc make = (newfunc)PyType_GetSlot(&PyTuple_Type, Py_tp_new);
        PyObject *wrapped = PyTuple_Pack(1, fields);
        if (wrapped)
            record = make((PyTypeObject *)self->record, wrapped, NULL);
        Py_XDECREF(wrapped);
    }
    Py_DECREF(fields);
    return record;
}

/* Bytes that the outputs take in the ring, or -1 with an exception. */
static Py_ssize_t measure(PyObject *outputs, int *noteworthy)
{
    if (!PyList_Check(outputs)) {
        PyErr_SetString(PyExc_TypeError, "outputs come as a list");
        return -1;
    }
    Py_ssize_t needs = 0, count = PyList_Size(outputs);
    for (Py_ssize_t index = 0; index < count; index++) {
        PyObject *output = PyList_GetItem(outputs, index);
        if (!PyTuple_Check(output) || PyTuple_Size(output) != OUTPUT_FIELDS) {
            PyErr_SetString(PyExc_TypeError, "an output is a tuple of kind, detail, number and payload");
            return -1;
        }
        Py_ssize_t length = PyBytes_Size(PyTuple_GetItem(output, 3));
        if (length < 0)
            return -1;
        for (int field = 0; field < 3; field++) /* no other number: from here on no code of Python's may run */
            if (!PyLong_Check(PyTuple_GetItem(output, field))) {
                PyErr_SetString(PyExc_TypeError, "an output is of three integers and bytes");
                return -1;
            }
        *noteworthy |= PyLong_AsLong(PyTuple_GetItem(output, 0)) > REPLY;
        needs += OUTPUT_BYTES + ((length + 15) & ~(Py_ssize_t)15);
    }
    return needs;
}

static int put_outputs(Mailbox *self, PyObject *outputs, uint64_t end)
{
    for (Py_ssize_t index = 0, count = PyList_Size(outputs); index < count; index++) {
        PyObject *output = PyList_GetItem(outputs, index);
        uint64_t fields[3];
        for (int field = 0; field < 3; field++)
            if (!to_u64(PyTuple_GetItem(output, field), &fields[field]))
                return 0;
        char *payload;
        Py_ssize_t length;
        if (PyBytes_AsStringAndSize(PyTuple_GetItem(output, 3), &payload, &length) < 0)
            return 0;
        struct { uint32_t length; uint16_t kind, detail; uint64_t number; } head = {
            (uint32_t)length, (uint16_t)fields[0], (uint16_t)fields[1], fields[2]
        };
        put(self, self->outputs + (end & (self->output_bytes - 1)), &head, sizeof head);
        end += OUTPUT_BYTES;
        uint64_t at = end & (self->output_bytes - 1);
        uint64_t first = self->output_bytes - at;
        if ((uint64_t)length <= first)
            first = (uint64_t)length;
        put(self, self->outputs + at, payload, first);
        if (first < (uint64_t)length)
            put(self, self->outputs, payload + first, (uint64_t)length - first);
        end += ((uint64_t)length + 15) & ~(uint64_t)15;
    }
    return 1;
}

enum { LACKS_ROOM = -1, QUIET, RING };

static PyObject *mailbox_commit(Mailbox *self, PyObject *const *arguments, Py_ssize_t given)
{
    /* outputs, registers, packed; then applied, levels, next_alarm_ns, state_version */
    uint64_t values[4];
    if (given != 7) {
        PyErr_Format(PyExc_TypeError, "%zd arguments instead of 7", given);
        return NULL;
    }
    if (!take_arguments(arguments + 3, 4, 4, values))
        return NULL;
    PyObject *outputs = arguments[0];
    char *packed;
    Py_ssize_t packed_bytes;
    if (PyBytes_AsStringAndSize(arguments[2], &packed, &packed_bytes) < 0)
        return NULL;
    Py_buffer registers;
    if (PyObject_GetBuffer(arguments[1], &registers, PyBUF_SIMPLE) < 0)
        return NULL;
    PyObject *result = NULL;
    int noteworthy = 0;
    Py_ssize_t needs = is_released(self) ? -1 : measure(outputs, &noteworthy);
    if (needs < 0 || PyErr_Occurred())
        goto done;
    uint64_t *words = self->words;
    uint64_t end = self->output_end;
    int64_t used = (int64_t)(end - load(&words[CONSUMED]));
    if ((uint64_t)registers.len > 8 * self->register_words) {
        PyErr_SetString(PyExc_ValueError, "more registers than the journal has words for");
        goto done;
    }
    store(self, &words[HANDLING], 0); /* from here on no input is to blame */
    if ((needs && (used + needs > (int64_t)self->output_bytes || (uint64_t)needs > self->output_bytes))
        || SLOT_BYTES + (uint64_t)registers.len + (uint64_t)packed_bytes > self->state_bytes) {
        result = PyLong_FromLong(LACKS_ROOM);
        goto done;
    }
    if (!put_outputs(self, outputs, end))
        goto done;
    end += (uint64_t)needs;
    uint64_t commit = load(&words[COMMIT]) + 1;
    uint64_t slot[7] = {values[0], end, values[1], values[2], values[3],
                        (uint64_t)registers.len, (uint64_t)packed_bytes};
    uint8_t *at = self->slots + (commit & 1) * self->state_bytes;
    put(self, at, slot, sizeof slot);
    put(self, at + sizeof slot, registers.buf, (size_t)registers.len);
    put(self, at + sizeof slot + registers.len, packed, (size_t)packed_bytes);
    store(self, &words[COMMIT], commit); /* now it has happened */
    self->output_end = end;
    for (Py_ssize_t index = 0; index < registers.len / 8; index++) {
        uint64_t value;
        memcpy(&value, (const char *)registers.buf + 8 * index, 8);
        if (self->registers[index] != value) /* a page that nobody has touched stays so */
            store(self, &self->registers[index], value);
    }
    noteworthy |= load(&words[NEXT_ALARM]) != values[2];
    store(self, &words[IRQ_LEVELS], values[1]);
    store(self, &words[NEXT_ALARM], values[2]);
    store(self, &words[OUTPUT_END], end);
    store(self, &words[PUBLISHED], values[0]);
    fence();
    uint64_t wanted = load(&words[WANTED]);
    result = PyLong_FromLong(noteworthy || (wanted && wanted <= values[0]) ? RING : QUIET);
done:
    PyBuffer_Release(&registers);
    return result;
}

/* -- the object ------------------------------------------------------------------------------------------ */

static PyObject *mailbox_release(Mailbox *self, PyObject *unused)
{
    if (self->words) {
        self->words = NULL;
        PyBuffer_Release(&self->view);
    }
    Py_RETURN_NONE;
}

static int mailbox_init(Mailbox *self, PyObject *arguments, PyObject *keywords)
{
    PyObject *memory, *record;
    unsigned long long register_words, input_slots, output_bytes, state_bytes;
    if (keywords && PyDict_Size(keywords)) {
        PyErr_SetString(PyExc_TypeError, "positional arguments only");
        return -1;
    }
    if (!PyArg_ParseTuple(arguments, "OOKKKK", &memory, &record, &register_words, &input_slots, &output_bytes,
                          &state_bytes))
        return -1;
    if (!PyType_Check(record) || !PyType_IsSubtype((PyTypeObject *)record, &PyTuple_Type)) {
        PyErr_SetString(PyExc_TypeError, "the class of records is not one of tuples");
        return -1;
    }
    if (self->words) {
        PyErr_SetString(PyExc_TypeError, "initialised already");
        return -1;
    }
    const unsigned long long most = 1ull << 32; /* of each, so that no sum runs over */
    if (register_words > most || input_slots > most || output_bytes > most || state_bytes > most
        || !input_slots || input_slots & (input_slots - 1) || output_bytes < 16
        || output_bytes & (output_bytes - 1) || state_bytes & 7) {
        PyErr_SetString(PyExc_ValueError, "the sizes are not those of a journal");
        return -1;
    }
    if (PyObject_GetBuffer(memory, &self->view, PyBUF_WRITABLE) < 0)
        return -1;
    unsigned long long inputs_at = HEADER_BYTES + 8 * register_words;
    unsigned long long outputs_at = inputs_at + 8 * INPUT_WORDS * input_slots;
    unsigned long long slots_at = outputs_at + output_bytes;
    if ((unsigned long long)self->view.len < slots_at + 2 * state_bytes) {
        PyBuffer_Release(&self->view);
        PyErr_SetString(PyExc_ValueError, "the memory is smaller than its journal");
        return -1;
    }
    uint8_t *base = self->view.buf;
    self->words = (uint64_t *)base;
    self->registers = (uint64_t *)(base + HEADER_BYTES);
    self->inputs = (uint64_t *)(base + inputs_at);
    self->outputs = base + outputs_at;
    self->slots = base + slots_at;
    self->register_words = register_words;
    self->input_mask = input_slots - 1;
    self->output_bytes = output_bytes;
    self->state_bytes = state_bytes;
    self->record = Py_NewRef(record);
    return 0;
}

static void mailbox_dealloc(Mailbox *self)
{
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    if (self->words)
        PyBuffer_Release(&self->view);
    Py_XDECREF(self->record);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF(type);
}

#define FAST(name) {#name, (PyCFunction)(void (*)(void))mailbox_##name, METH_FASTCALL, NULL}

static PyMethodDef methods[] = {
    FAST(submit), FAST(take_value), FAST(await_published), FAST(await_submitted), FAST(take), FAST(commit),
    {"shares_core", (PyCFunction)mailbox_shares_core, METH_NOARGS, NULL},
    {"release", (PyCFunction)mailbox_release, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef members[] = {
    {"output_end", T_ULONGLONG, offsetof(Mailbox, output_end), 0, NULL},
    {"fuse", T_LONGLONG, offsetof(Mailbox, fuse), 0, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_doc, "The hot path of a journal; see supervisor.worker.mailbox.Mailbox."},
    {Py_tp_new, PyType_GenericNew}, {Py_tp_init, mailbox_init}, {Py_tp_dealloc, mailbox_dealloc},
    {Py_tp_methods, methods}, {Py_tp_members, members}, {0, NULL},
};

static PyType_Spec spec = {
    "supervisor.worker._mailbox.Mailbox", sizeof(Mailbox), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    slots,
};

static int add_contents(PyObject *module)
{
    PyObject *type = PyType_FromSpec(&spec);
    if (!type)
        return -1;
    int failed = PyModule_AddObjectRef(module, "Mailbox", type);
    Py_DECREF(type);
    return failed ? -1 : PyModule_AddIntConstant(module, "REVISION", REVISION);
}

static PyModuleDef_Slot module_slots[] = {{Py_mod_exec, add_contents}, {0, NULL}};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_mailbox", NULL, 0, NULL, module_slots, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__mailbox(void) { return PyModuleDef_Init(&definition); }
