import { AgentError } from "../lib/errors.ts";

/** A place in a parsed document, for reading unknown data with errors that name file and field. */
export class Field {
  readonly value: unknown;
  readonly #file: string;
  readonly #path: string;

  constructor(value: unknown, file: string, path: string) {
    this.value = value;
    this.#file = file;
    this.#path = path;
  }

  /** False for absent, null and empty-string values, which kubeconfig does not tell apart. */
  get isPresent(): boolean {
    return this.value !== undefined && this.value !== null && this.value !== "";
  }

  at(name: string): Field {
    const value = this.isPresent ? this.record()[name] : undefined;
    return new Field(value, this.#file, this.#path === "" ? name : `${this.#path}.${name}`);
  }

  /** One Invalid error: `file: path what`. */
  error(what: string): AgentError {
    return new AgentError("Invalid", `${this.#file}: ${this.#path === "" ? "document" : this.#path} ${what}`);
  }

  record(): Record<string, unknown> {
    const { value } = this;
    if (typeof value !== "object" || value === null || Array.isArray(value)) throw this.error("must be a mapping");
    return value as Record<string, unknown>;
  }

  /** Elements of a list; none if absent. */
  items(): Field[] {
    if (!this.isPresent) return [];
    if (!Array.isArray(this.value)) throw this.error("must be a list");
    return this.value.map((item: unknown, i) => new Field(item, this.#file, `${this.#path}[${i}]`));
  }

  optionalString(): string | undefined {
    if (!this.isPresent) return undefined;
    if (typeof this.value !== "string") throw this.error("must be a string");
    return this.value;
  }

  requiredString(meaning: string): string {
    const value = this.optionalString();
    if (value === undefined) throw this.error(`is missing: must be ${meaning}`);
    return value;
  }

  optionalStrings(): string[] {
    return this.items().map((item) => {
      if (typeof item.value !== "string") throw item.error("must be a string");
      return item.value;
    });
  }

  optionalBoolean(): boolean | undefined {
    if (!this.isPresent) return undefined;
    if (typeof this.value !== "boolean") throw this.error("must be true or false");
    return this.value;
  }
}
