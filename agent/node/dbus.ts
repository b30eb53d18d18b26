import { once } from "node:events";
import { connect, type Socket } from "node:net";
import type { Clock } from "../lib/clock.ts";
import { AgentError, messageOf } from "../lib/errors.ts";
import { type DBusValue, marshal, membersOf, textOf, unmarshal, Variant } from "./dbus-wire.ts";

/** One method call. `destination` is the bus name of who answers. */
export interface DBusCall {
  destination: string;
  path: string;
  interface: string;
  member: string;
  signature: string;
  args: readonly DBusValue[];
}

/** A D-Bus error answer; `errorName` is the peer's, `org.freedesktop.systemd1.NoSuchUnit`. */
export class DBusError extends AgentError {
  readonly errorName: string;
  constructor(errorName: string, message: string) {
    super("Internal", message);
    this.errorName = errorName;
  }
}

/** Calls methods over D-Bus. */
export interface DBus {
  /** Resolves to the answer's values. Rejects with {@link DBusError}, Unavailable (connection lost) or DeadlineExceeded. */
  call(call: DBusCall): Promise<DBusValue[]>;
  close(): void;
}

// What libcontainer, and so the reference, waits for systemd.
const callTimeoutMs = 30_000;
// Answers that we ask for are a few hundred bytes.
const messageBytesMax = 1 << 20;
const headerBytes = 16;
const messageTypes = { call: 1, answer: 2, error: 3 };
const headerFields = { path: 1, interface: 2, member: 3, errorName: 4, replySerial: 5, destination: 6, signature: 8 };

/**
 * Connects to a message bus, as root or as the user that we are. Rejects with Unavailable. A connection that ends stays
 * ended: make another.
 */
export async function connectDBus(socketPath: string, clock: Clock): Promise<DBus> {
  const socket = connect(socketPath);
  try {
    await once(socket, "connect", { signal: AbortSignal.timeout(callTimeoutMs) });
    await authenticate(socket);
  } catch (err) {
    socket.destroy();
    throw new AgentError("Unavailable", `cannot connect to D-Bus at ${socketPath}: ${messageOf(err)}`, { cause: err });
  }
  const connection = new Connection(socket, clock);
  try {
    const bus = {
      destination: "org.freedesktop.DBus",
      path: "/org/freedesktop/DBus",
      interface: "org.freedesktop.DBus",
    };
    await connection.call({ ...bus, member: "Hello", signature: "", args: [] });
  } catch (err) {
    connection.close();
    throw err;
  }
  return connection;
}

/** The simple text exchange that comes before messages: the kernel tells the peer who we are. */
async function authenticate(socket: Socket): Promise<void> {
  const uid = Buffer.from(String(process.getuid?.() ?? 0)).toString("hex");
  socket.write(`\0AUTH EXTERNAL ${uid}\r\n`);
  const [data] = (await once(socket, "data", { signal: AbortSignal.timeout(callTimeoutMs) })) as [Buffer];
  const answer = data.toString("latin1");
  if (!answer.startsWith("OK ")) throw new Error(`authentication was refused: ${answer.trim()}`);
  socket.write("BEGIN\r\n");
}

interface Waiting {
  resolve: (values: DBusValue[]) => void;
  reject: (err: Error) => void;
}

class Connection implements DBus {
  readonly #socket: Socket;
  readonly #clock: Clock;
  readonly #waiting = new Map<number, Waiting>();
  #received = Buffer.alloc(0);
  #serial = 0;
  #ended: AgentError | undefined;

  constructor(socket: Socket, clock: Clock) {
    this.#socket = socket;
    this.#clock = clock;
    socket.unref();
    socket.on("data", (data) => this.#receive(data));
    socket.on("error", (err) => this.#end(messageOf(err)));
    socket.on("close", () => this.#end("the connection was closed"));
  }

  async call(call: DBusCall): Promise<DBusValue[]> {
    if (this.#ended !== undefined) throw this.#ended;
    this.#serial += 1;
    const serial = this.#serial;
    const { promise, resolve, reject } = Promise.withResolvers<DBusValue[]>();
    this.#waiting.set(serial, { resolve, reject });
    const timer = this.#clock.after(callTimeoutMs, () =>
      reject(new AgentError("DeadlineExceeded", `D-Bus: no answer to ${call.member} within ${callTimeoutMs / 1000} s`)),
    );
    this.#socket.ref(); // a call in flight keeps the process alive, an idle connection does not
    this.#socket.write(encodeCall(call, serial));
    try {
      return await promise;
    } finally {
      timer.cancel();
      this.#waiting.delete(serial);
      if (this.#waiting.size === 0) this.#socket.unref();
    }
  }

  close(): void {
    this.#end("closed");
  }

  #end(why: string): void {
    if (this.#ended !== undefined) return;
    this.#ended = new AgentError("Unavailable", `D-Bus connection lost: ${why}`);
    this.#socket.destroy();
    for (const { reject } of this.#waiting.values()) reject(this.#ended);
  }

  #receive(data: Buffer): void {
    this.#received = Buffer.concat([this.#received, data]);
    try {
      for (let size = messageSize(this.#received); size !== undefined; size = messageSize(this.#received)) {
        this.#handle(this.#received.subarray(0, size));
        this.#received = this.#received.subarray(size);
      }
    } catch (err) {
      this.#end(`not understood: ${messageOf(err)}`);
    }
  }

  #handle(message: Buffer): void {
    const { type, fields, body } = decode(message);
    // Signals and calls to us are nothing that we asked for.
    const waiting = this.#waiting.get(Number(fields.get(headerFields.replySerial) ?? 0));
    if (waiting === undefined) return;
    const values = unmarshal(textOf(fields.get(headerFields.signature)), body);
    if (type === messageTypes.answer) {
      waiting.resolve(values);
      return;
    }
    const errorName = textOf(fields.get(headerFields.errorName));
    waiting.reject(new DBusError(errorName, textOf(values[0]) || errorName));
  }
}

/** Bytes of a method call. */
export function encodeCall(call: DBusCall, serial: number): Buffer {
  const body = marshal(call.signature, call.args);
  const fields: DBusValue[] = [
    [headerFields.path, new Variant("o", call.path)],
    [headerFields.interface, new Variant("s", call.interface)],
    [headerFields.member, new Variant("s", call.member)],
    [headerFields.destination, new Variant("s", call.destination)],
    ...(call.signature === "" ? [] : [[headerFields.signature, new Variant("g", call.signature)]]),
  ];
  const start = ["l".charCodeAt(0), messageTypes.call, 0, 1, body.length, serial];
  const header = marshal("yyyyuua(yv)", [...start, fields]);
  return Buffer.concat([header, Buffer.alloc(padding(header.length)), body]);
}

/** Length of the first message in `bytes`; undefined until all of it is there. Throws if it cannot be one for us. */
function messageSize(bytes: Buffer): number | undefined {
  if (bytes.length < headerBytes) return undefined;
  if (bytes[0] !== "l".charCodeAt(0)) throw new Error("big-endian message");
  const fieldsEnd = headerBytes + bytes.readUInt32LE(12);
  const size = fieldsEnd + padding(fieldsEnd) + bytes.readUInt32LE(4);
  if (size > messageBytesMax) throw new Error(`message of ${size} bytes`);
  return bytes.length < size ? undefined : size;
}

function decode(message: Buffer): { type: number; fields: Map<number, DBusValue>; body: Buffer } {
  const fieldsEnd = headerBytes + message.readUInt32LE(12);
  const [, type, , , , , list] = unmarshal("yyyyuua(yv)", message.subarray(0, fieldsEnd));
  const fields = new Map<number, DBusValue>();
  for (const field of membersOf(list)) {
    const [code, value] = membersOf(field);
    if (value instanceof Variant) fields.set(Number(code), value.value);
  }
  return { type: Number(type), fields, body: message.subarray(fieldsEnd + padding(fieldsEnd)) };
}

function padding(length: number): number {
  return (8 - (length % 8)) % 8;
}
