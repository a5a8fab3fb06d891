@ The demo guest: a line-oriented command loop on a Cortex-M0 with a PL011 UART, a PL031 real-time clock, an
@ SP804 timer and the demo random number generator. Assembled by machines/thumb.py when the board is built.
@
@ It prints no value that depends on when it runs: times are compared here and answered with yes or no, so
@ that two runs with the same input must print the same.

.equ UART,   0x40000000         @ config/demo.yaml says where the devices are
.equ RTC,    0x40001000
.equ TIMER,  0x40002000
.equ RNG,    0x40003000
.equ NVIC_ISER, 0xE000E100
.equ STACK,  0x20004000
.equ LINE,   0x20000000         @ what is being typed
.equ LINE_MAX, 78
.equ FIRED,  0x20000100         @ a word that the timer's interrupt counts up

@ -- vectors: initial stack, reset, then exceptions 2 to 15 and the interrupts ------------------------------

    .word STACK, reset, fault, fault, 0, 0, 0, 0
    .word 0, 0, 0, fault, 0, 0, fault, fault
    .word uart_irq, timer_irq

@ -- start ------------------------------------------------------------------------------------------------

.thumb_func
reset:
    ldr r0, =UART
    movs r1, #0x70              @ LCR_H: 8 bits, FIFOs on
    str r1, [r0, #0x2C]
    ldr r1, =0x301              @ CR: enabled, both directions
    str r1, [r0, #0x30]
    movs r1, #0x10              @ IMSC: a byte has come in
    str r1, [r0, #0x38]
    ldr r0, =NVIC_ISER
    movs r1, #3                 @ the UART's line and the timer's
    str r1, [r0]
    ldr r0, =hello
    bl print

next_line:
    ldr r0, =prompt
    bl print
    bl read_line                @ r0: how many characters
    cmp r0, #0
    beq next_line
    ldr r5, =LINE
    ldrb r0, [r5]
    cmp r0, #'e'
    beq echo
    cmp r0, #'r'
    beq random
    cmp r0, #'s'
    beq sleep
    cmp r0, #'t'
    beq clock
    cmp r0, #'c'
    beq count
    ldr r0, =help
    bl print
    b next_line

fail:
    ldr r0, =no
    bl print
    b next_line
pass:
    ldr r0, =yes
    bl print
    b next_line
.pool

@ -- e TEXT: says TEXT -------------------------------------------------------------------------------------

echo:
    movs r0, r5
    adds r0, #2
    bl print
    ldr r0, =newline
    bl print
    b next_line

@ -- r: four random words, and how many have been taken so far ---------------------------------------------

random:
    movs r4, #4
    ldr r6, =RNG
random_next:
    ldr r0, [r6]
    bl print_hex
    movs r0, #' '
    bl put
    subs r4, #1
    bne random_next
    ldr r0, [r6, #4]
    bl print_hex
    ldr r0, =newline
    bl print
    b next_line

@ -- s: sleeps half a second on the timer's interrupt; was it woken exactly once? --------------------------

sleep:
    ldr r4, =FIRED
    movs r0, #0
    str r0, [r4]
    ldr r6, =TIMER
    ldr r0, =500000             @ microseconds
    str r0, [r6]
    movs r0, #0xA3              @ CONTROL: on, interrupt, 32 bits, one shot
    str r0, [r6, #8]
sleep_on:
    wfi
    ldr r0, [r4]
    cmp r0, #0
    beq sleep_on
    cmp r0, #1
    bne fail
    ldr r0, [r6, #4]            @ a spent timer stands at zero
    cmp r0, #0
    bne fail
    b pass

@ -- t: does the clock tick once in a second of the timer's, and can it be set? ----------------------------

clock:
    ldr r4, =RTC
    ldr r6, =TIMER
    ldr r0, =1000
    str r0, [r4, #8]            @ LR: set the clock, which begins a new second
    ldr r0, =1100000
    str r0, [r6, #0x20]         @ the second timer, without its interrupt
    movs r0, #0x83
    str r0, [r6, #0x28]
clock_wait:
    ldr r0, [r6, #0x30]         @ RIS
    cmp r0, #0
    beq clock_wait
    str r0, [r6, #0x2C]         @ INTCLR
    ldr r0, [r4]
    ldr r1, =1001
    cmp r0, r1
    bne fail
    b pass
.pool

@ -- c: a sum that takes a while: 1 + 2 + ... + 100000 -----------------------------------------------------

count:
    ldr r1, =100000
    movs r0, #0
count_on:
    adds r0, r0, r1
    subs r1, #1
    bne count_on
    bl print_hex
    ldr r0, =newline
    bl print
    b next_line

@ -- reading a line: echoes, knows backspace, returns the length in r0 -------------------------------------

read_line:
    push {r4, r5, r6, lr}
    ldr r4, =LINE
    movs r5, #0
    ldr r6, =UART
read_next:
    ldr r0, [r6, #0x18]         @ FR
    movs r1, #0x10              @ RXFE: nothing there
    tst r0, r1
    beq read_one
    movs r1, #0x10
    str r1, [r6, #0x38]         @ IMSC: wake me
    wfi
    b read_next
read_one:
    ldr r0, [r6]
    cmp r0, #13
    beq read_done
    cmp r0, #127
    beq read_back
    cmp r5, #LINE_MAX
    bhs read_next
    strb r0, [r4, r5]
    adds r5, #1
    bl put
    b read_next
read_back:
    cmp r5, #0
    beq read_next
    subs r5, #1
    ldr r0, =rub_out
    bl print
    b read_next
read_done:
    movs r0, #0
    strb r0, [r4, r5]
    ldr r0, =newline
    bl print
    movs r0, r5
    pop {r4, r5, r6, pc}

@ -- printing ---------------------------------------------------------------------------------------------

print:                          @ r0: a string that ends in zero
    push {r4, lr}
    movs r4, r0
print_next:
    ldrb r0, [r4]
    cmp r0, #0
    beq print_done
    bl put
    adds r4, #1
    b print_next
print_done:
    pop {r4, pc}

print_hex:                      @ r0: a word, as eight digits
    push {r4, r5, lr}
    movs r4, r0
    movs r5, #8
hex_next:
    lsrs r0, r4, #28
    lsls r4, r4, #4
    cmp r0, #9
    bls hex_digit
    adds r0, #39                @ from '9' + 1 to 'a'
hex_digit:
    adds r0, #'0'
    bl put
    subs r5, #1
    bne hex_next
    pop {r4, r5, pc}

put:                            @ r0: a character
    ldr r1, =UART
    str r0, [r1]
    bx lr
.pool

@ -- interrupts -------------------------------------------------------------------------------------------

.thumb_func
uart_irq:                       @ something to read: the loop does that, the interrupt only wakes it
    ldr r0, =UART
    movs r1, #0
    str r1, [r0, #0x38]
    bx lr

.thumb_func
timer_irq:
    ldr r0, =TIMER
    movs r1, #1
    str r1, [r0, #0x0C]         @ INTCLR
    ldr r0, =FIRED
    ldr r1, [r0]
    adds r1, #1
    str r1, [r0]
    bx lr

.thumb_func
fault:
    ldr r0, =broken
    bl print
stop:
    b stop
.pool

@ -- texts ------------------------------------------------------------------------------------------------

hello:   .asciz "tubevisor demo guest: a Cortex-M0 and four devices\r\nh for help\r\n"
prompt:  .asciz ">>> "
newline: .asciz "\r\n"
rub_out: .asciz "\b \b"
yes:     .asciz "yes\r\n"
no:      .asciz "no\r\n"
broken:  .asciz "\r\nfault\r\n"
help:    .asciz "e TEXT echo, r random words, s sleep 0.5 s, t test the clock, c count\r\n"
