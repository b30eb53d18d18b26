import { isObject, type JsonObject } from "./json.ts";

/**
 * Reads the protobuf bodies that newer kubectls send for what they make themselves (`create configmap`, `create token`,
 * `auth can-i`, `drain`): only those kinds, only JSON comes back. Elsewhere this server speaks JSON alone.
 */

type FieldType = "string" | "bytes" | "int" | "bool" | "intOrString" | "stringMap" | "bytesMap" | Message;
interface Field {
  name: string;
  type: FieldType;
  isList?: boolean;
}
/** Fields by number. */
type Message = Readonly<{ fields: Readonly<Record<number, Field>> }>;

const message = (fields: Record<number, [name: string, type?: FieldType, isList?: boolean]>): Message => ({
  fields: Object.fromEntries(
    Object.entries(fields).map(([n, [name, type = "string", isList = false]]) => [n, { name, type, isList }]),
  ),
});

const metadata = message({
  1: ["name"],
  2: ["generateName"],
  3: ["namespace"],
  5: ["uid"],
  6: ["resourceVersion"],
  11: ["labels", "stringMap"],
  12: ["annotations", "stringMap"],
  14: ["finalizers", "string", true],
});
const deleteOptions = message({
  1: ["gracePeriodSeconds", "int"],
  2: ["preconditions", message({ 1: ["uid"], 2: ["resourceVersion"] })],
  4: ["propagationPolicy"],
  5: ["dryRun", "string", true],
});
const accessSpec = message({
  1: [
    "resourceAttributes",
    message({
      1: ["namespace"],
      2: ["verb"],
      3: ["group"],
      4: ["version"],
      5: ["resource"],
      6: ["subresource"],
      7: ["name"],
    }),
  ],
  2: ["nonResourceAttributes", message({ 1: ["path"], 2: ["verb"] })],
});
const servicePort = message({
  1: ["name"],
  2: ["protocol"],
  3: ["port", "int"],
  4: ["targetPort", "intOrString"],
  5: ["nodePort", "int"],
  6: ["appProtocol"],
});

const kinds: Readonly<Record<string, Message>> = {
  ConfigMap: message({
    1: ["metadata", metadata],
    2: ["data", "stringMap"],
    3: ["binaryData", "bytesMap"],
    4: ["immutable", "bool"],
  }),
  Secret: message({
    1: ["metadata", metadata],
    2: ["data", "bytesMap"],
    3: ["type"],
    4: ["stringData", "stringMap"],
    5: ["immutable", "bool"],
  }),
  Namespace: message({ 1: ["metadata", metadata] }),
  ServiceAccount: message({ 1: ["metadata", metadata], 4: ["automountServiceAccountToken", "bool"] }),
  Service: message({
    1: ["metadata", metadata],
    2: [
      "spec",
      message({
        1: ["ports", servicePort, true],
        2: ["selector", "stringMap"],
        3: ["clusterIP"],
        4: ["type"],
        10: ["externalName"],
      }),
    ],
  }),
  PriorityClass: message({
    1: ["metadata", metadata],
    2: ["value", "int"],
    3: ["globalDefault", "bool"],
    4: ["description"],
    5: ["preemptionPolicy"],
  }),
  TokenRequest: message({
    1: ["metadata", metadata],
    2: [
      "spec",
      message({
        1: ["audiences", "string", true],
        3: ["boundObjectRef", message({ 1: ["kind"], 2: ["apiVersion"], 3: ["name"], 4: ["uid"] })],
        4: ["expirationSeconds", "int"],
      }),
    ],
  }),
  SelfSubjectAccessReview: message({ 1: ["metadata", metadata], 2: ["spec", accessSpec] }),
  SelfSubjectRulesReview: message({ 1: ["metadata", metadata], 2: ["spec", message({ 1: ["namespace"] })] }),
  SelfSubjectReview: message({ 1: ["metadata", metadata] }),
  Eviction: message({ 1: ["metadata", metadata], 2: ["deleteOptions", deleteOptions] }),
  DeleteOptions: deleteOptions,
};

const magic = Buffer.from("k8s\0");
const envelope = message({ 1: ["typeMeta", message({ 1: ["apiVersion"], 2: ["kind"] })], 2: ["raw", "bytes"] });

/**
 * The object in a `application/vnd.kubernetes.protobuf` body.
 *
 * @returns undefined for a kind whose fields are not known here
 * @throws Error when the bytes are no such message
 */
export function decodeKubernetes(body: Buffer): JsonObject | undefined {
  if (!body.subarray(0, magic.length).equals(magic)) throw new Error("the body is not a Kubernetes protobuf message");
  const outer = decode(body.subarray(magic.length), envelope);
  const type = isObject(outer["typeMeta"]) ? outer["typeMeta"] : {};
  const kind = typeof type["kind"] === "string" ? type["kind"] : "";
  const schema = kinds[kind];
  if (schema === undefined) return undefined;
  const raw = typeof outer["raw"] === "string" ? Buffer.from(outer["raw"], "base64") : Buffer.alloc(0);
  return { ...type, ...decode(raw, schema) };
}

function decode(data: Buffer, schema: Message): JsonObject {
  const result: JsonObject = {};
  for (const [number, value] of readFields(data)) {
    const field = schema.fields[number];
    if (field === undefined) continue;
    const { name, type, isList } = field;
    if (type === "stringMap" || type === "bytesMap") {
      const entries = isObject(result[name]) ? result[name] : {};
      const entry = decode(
        bytesOf(value),
        message({ 1: ["key"], 2: ["value", type === "stringMap" ? "string" : "bytes"] }),
      );
      result[name] = { ...entries, [typeof entry["key"] === "string" ? entry["key"] : ""]: entry["value"] ?? "" };
      continue;
    }
    const converted = convert(value, type);
    if (isList === true) {
      const list: unknown[] = Array.isArray(result[name]) ? result[name] : [];
      result[name] = [...list, converted];
    } else result[name] = converted;
  }
  // The wire format writes empty strings where JSON leaves a field out.
  return Object.fromEntries(Object.entries(result).filter(([, value]) => value !== ""));
}

function convert(value: number | Buffer, type: Exclude<FieldType, "stringMap" | "bytesMap">): unknown {
  switch (type) {
    case "string":
      return bytesOf(value).toString("utf8");
    case "bytes":
      return bytesOf(value).toString("base64");
    case "int":
      return Number(value);
    case "bool":
      return value !== 0;
    case "intOrString": {
      const parts = decode(bytesOf(value), message({ 1: ["type", "int"], 2: ["number", "int"], 3: ["text"] }));
      return parts["type"] === 1 ? parts["text"] : (parts["number"] ?? 0);
    }
    default:
      return decode(bytesOf(value), type);
  }
}

function bytesOf(value: number | Buffer): Buffer {
  return typeof value === "number" ? Buffer.alloc(0) : value;
}

function* readFields(data: Buffer): Generator<[number: number, value: number | Buffer]> {
  let at = 0;
  const varint = () => {
    let value = 0n;
    for (let shift = 0n; ; shift += 7n) {
      const byte = data[at++];
      if (byte === undefined) throw new Error("truncated protobuf message");
      value |= BigInt(byte & 0x7f) << shift;
      if (byte < 0x80) return Number(BigInt.asIntN(64, value));
    }
  };
  while (at < data.length) {
    const tag = varint();
    const number = Math.floor(tag / 8);
    switch (tag % 8) {
      case 0:
        yield [number, varint()];
        break;
      case 2: {
        const length = varint();
        if (at + length > data.length) throw new Error("truncated protobuf message");
        yield [number, data.subarray(at, at + length)];
        at += length;
        break;
      }
      case 1:
        at += 8;
        break;
      case 5:
        at += 4;
        break;
      default:
        throw new Error("unknown protobuf wire type");
    }
  }
}

/** One length-delimited field of a protobuf message, for writing; `content` is text or the fields of a message. */
export function protobufField(number: number, ...content: (string | Buffer)[]): Buffer {
  const bytes = Buffer.concat(content.map((part) => (typeof part === "string" ? Buffer.from(part) : part)));
  return Buffer.concat([varintBytes(number * 8 + 2), varintBytes(bytes.length), bytes]);
}

function varintBytes(value: number): Buffer {
  const bytes: number[] = [];
  let rest = value;
  for (; rest >= 0x80; rest = Math.floor(rest / 0x80)) bytes.push((rest % 0x80) | 0x80);
  return Buffer.from([...bytes, rest]);
}
