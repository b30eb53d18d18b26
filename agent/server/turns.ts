/** Lets things happen one a turn of the event loop, in the order in which they were asked for. */
export class Turns {
  readonly #waiting: (() => void)[] = [];

  next(act: () => void): void {
    this.#waiting.push(act);
    if (this.#waiting.length === 1) setImmediate(this.#turn);
  }

  readonly #turn = (): void => {
    const act = this.#waiting.shift();
    if (this.#waiting.length > 0) setImmediate(this.#turn);
    act?.();
  };
}
