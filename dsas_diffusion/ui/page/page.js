// Runs once, when the page is there: numbers beyond the ends of their field are brought back, and a line says so; and
// buttons around pictures get names, which Gradio gives them not.
() => {
  const line = document.createElement('p');
  line.id = 'said';
  line.setAttribute('role', 'status');
  document.body.append(line);
  let timer;
  const clamp = (event) => {
    const field = event.target;
    if (!(field instanceof HTMLInputElement) || field.type !== 'number' || field.value === '') return;
    if (event.type === 'keydown' && event.key !== 'Enter') return;
    const [value, low, high] = [field.value, field.min, field.max].map((text) => (text === '' ? NaN : Number(text)));
    const end = value < low ? low : value > high ? high : NaN;
    if (Number.isNaN(end)) return;
    const name = (field.ariaLabel || '').replace('number input for ', '');
    line.textContent = `${name}: ${value} is beyond ${low} to ${high}, so it is ${end}.`;
    clearTimeout(timer);
    timer = setTimeout(() => { line.textContent = ''; }, 10000);
    field.value = end;
    field.dispatchEvent(new Event('input', { bubbles: true }));
  };
  document.addEventListener('blur', clamp, true); // before the field's own handler, which says nothing
  document.addEventListener('keydown', clamp, true);
  const name = () => document.querySelectorAll('button:not([aria-label]):has(> .image-frame)').forEach((button) => {
    button.ariaLabel = button.closest('.block')?.querySelector('label')?.textContent.trim() || 'picture';
  });
  new MutationObserver(name).observe(document.body, { childList: true, subtree: true });
  name();
}
