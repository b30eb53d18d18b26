import { createSocket } from "node:dgram";

const headerBytes = 12;

/** A DNS server that answers each question for an address with `address`: the one UDP service that busybox can ask. */
export interface DNSEcho extends AsyncDisposable {
  readonly port: number;
}

/** Starts it on a free port of `host`. */
export async function startDNSEcho(host: string, address: string): Promise<DNSEcho> {
  const socket = createSocket("udp4");
  socket.on("message", (question, { port, address: from }) => {
    const answer = answerTo(question, address);
    if (answer !== undefined) socket.send(answer, port, from);
  });
  await new Promise<void>((resolve, reject) => {
    socket.once("error", reject);
    socket.bind(0, host, resolve);
  });
  return {
    port: socket.address().port,
    [Symbol.asyncDispose]: () => new Promise((resolve) => void socket.close(() => resolve())),
  };
}

/** RFC 1035: the question with one A record behind it; no record for other types. */
function answerTo(question: Buffer, address: string): Buffer | undefined {
  let at = headerBytes;
  while (at < question.length && question[at] !== 0) at += (question[at] ?? 0) + 1;
  const end = at + 5;
  if (end > question.length) return undefined;
  const isAddress = question.readUInt16BE(at + 1) === 1;
  const header = Buffer.from(question.subarray(0, headerBytes));
  header.writeUInt16BE(0x8180, 2);
  header.writeUInt16BE(1, 4);
  header.writeUInt16BE(isAddress ? 1 : 0, 6);
  header.writeUInt32BE(0, 8);
  const record = Buffer.from([0xc0, headerBytes, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4, ...address.split(".").map(Number)]);
  return Buffer.concat([header, question.subarray(headerBytes, end), ...(isAddress ? [record] : [])]);
}
